"""Time on real devices: operator calls one by one (calibrate), and whole stages of a model with weights (measure)."""
