"""Serve a store over HTTP: the API, its documentation at /docs, and the page at /.

    python -m inference.server STORE                          # for this machine alone, without keys
    docmetric key add STORE scanner --scopes classify         # a key, which is shown once
    python -m inference.server STORE --host 0.0.0.0           # for the network, with keys; TLS is the work of a proxy
"""
from ..cli import run_cli
from .settings import parse


def main(arguments=None) -> None:
    settings = parse(__doc__, arguments)
    from .serve import serve  # --help and mistakes do not wait for it
    serve(settings)


if __name__ == "__main__":
    run_cli(main)
