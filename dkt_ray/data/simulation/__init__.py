"""The parts of the simulated learning platform; the public door is `dkt_ray.data.simulate`."""
