"""Write a collection as one ZIP file: types, references, their images, thresholds. `docmetric import` reads it.

    docmetric export types types.zip
    docmetric export http://localhost:8080 types.zip
"""
import os

from ..errors import UserError
from . import opened, parser, tell


def main(arguments=None) -> int:
    made = parser("export", __doc__)
    made.add_argument("file", metavar="FILE.zip", help="the file to write")
    args = made.parse_args(arguments)
    if os.path.isdir(args.file):
        raise UserError(f"{args.file}: a folder; give the name of a file, such as {os.path.join(args.file, 'types.zip')}")
    with opened(args) as registry:
        result = registry.export(args.file)
    return tell(args, result, [f"{args.file}: written"])
