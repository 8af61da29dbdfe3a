"""The registry over HTTP: `python -m inference.server STORE`. FastAPI and uvicorn."""
