"""Write a collection as one ZIP file: types, references, their pictures, thresholds. `docmetric import` reads it.

    docmetric export types types.zip
    docmetric export http://localhost:8080 types.zip
"""
from . import opened, parser, tell


def main(arguments=None) -> int:
    made = parser("export", __doc__)
    made.add_argument("file", metavar="FILE.zip", help="the file to write")
    args = made.parse_args(arguments)
    with opened(args) as registry:
        result = registry.export(args.file)
    return tell(args, result, [f"{args.file}: written"])
