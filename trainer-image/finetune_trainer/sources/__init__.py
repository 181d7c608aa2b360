"""Where models and data come from: volumes, hub, object stores, https."""
