"""The Serve applications: `app.py` (the prediction API) and `demo.py` (the web page), deployed by `serve.yaml`."""
