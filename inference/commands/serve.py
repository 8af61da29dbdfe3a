"""Start the server of a store: the page at /, the HTTP API at /v1, its documentation at /docs.

    docmetric serve types                                # for this machine alone, without keys
    docmetric serve types --port 0                       # any free port; the line that it prints has the address
    docmetric key add types office; docmetric serve types --host 0.0.0.0      # for the network; TLS is the work of a proxy
    docmetric serve types --keep-unknown 30d             # keeps what was rejected for so long, for the review

SIGTERM or Ctrl-C ends it when the running requests are answered.
"""
from . import local_store


def main(arguments=None) -> None:
    from ..server.settings import parse
    settings = parse(__doc__, arguments, "docmetric serve")
    local_store(settings.store)
    try:
        from ..server.serve import serve  # --help and mistakes do not wait for it
    except ModuleNotFoundError as error:
        from ..errors import UserError
        raise UserError(f"the server needs {error.name}: pip install \"docmetric[server]\"") from None
    serve(settings)
