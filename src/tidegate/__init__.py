"""Tidegate: a self-hosted LLM gateway. See `app.create_app` and, for what it does, `inference/flow.py`."""

__version__ = "0.1.0"
