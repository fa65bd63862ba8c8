"""dkt-ray: deep knowledge tracing on Ray, from answer logs to a served, weighted ensemble."""

__version__ = "0.1.0"
