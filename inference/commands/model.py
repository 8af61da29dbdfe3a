"""Change the model without registering anything again: embed beside, compare, switch, and go back.

    docmetric model ls types                       # the models that there are
    docmetric model add types NEW.onnx             # embeds all references with it too; after a break, build resumes
    docmetric model build types 3fa2               # HASH may be shortened
    docmetric model report types 3fa2              # what would change
    docmetric model activate types 3fa2            # from now on; activate the former one to go back
    docmetric model rm types 14ff
"""
from ..errors import UserError, plural, printable
from . import author, day, opened, parser, progress, tell


def main(arguments=None) -> int:
    made = parser("model", __doc__, ("ls", "add", "build", "report", "activate", "rm"))
    made.add_argument("model", nargs="?", metavar="M.onnx|HASH", help="add: file that onnx_export.py wrote; else a hash")
    args = made.parse_args(arguments)
    if (args.action == "ls") != (args.model is None):
        made.error(f"model {args.action}: " + ("takes nothing more" if args.model else "give a file" if args.action == "add"
                                               else "give a hash, see docmetric model ls STORE"))
    with opened(args) as registry:
        if args.action == "ls":
            found = registry.models()
            return tell(args, found, map(line, found))
        if args.action == "add":
            digest = registry.upgrade.add(args.model, **author(args))
        else:
            digest = whole(registry, args.model)
        if args.action in ("add", "build"):
            registry.upgrade.build(digest, progress("embedding"))
            model = next(one for one in registry.models() if one["hash"] == digest)
            after = [] if model["state"] == "active" else [f"next: docmetric model report {args.store} {digest[:8]}"]
            return tell(args, model, [line(model), *after])
        if args.action == "report":
            report = registry.upgrade.report(digest)
            return tell(args, report, described(report))
        if args.action == "activate":
            result = registry.upgrade.activate(digest, **author(args))
            former = f", instead of {result['former'][:16]}" if result["former"] else ""
            return tell(args, result, [f"active: {digest[:16]}{former}"])
        registry.upgrade.remove(digest, **author(args))
        return tell(args, dict(hash=digest), [f"removed {digest[:16]}"])


def whole(registry, prefix: str) -> str:
    """The hash that begins so."""
    found = [one["hash"] for one in registry.models() if one["hash"].startswith(prefix.lower())]
    if len(prefix) < 4 or len(found) != 1:
        raise UserError(f"model {printable(prefix)}: must be the beginning, four digits at least, of one model's hash; see "
                        "docmetric model ls STORE")
    return found[0]


def line(model: dict) -> str:
    return (f"{model['hash'][:16]}  {model['state']}  {model['name']}  {plural(model['references'], 'reference')}  "
            f"{day(model['created'])}")


def described(report: dict) -> list[str]:
    """What `upgrade.Upgrade.report` found, in lines."""
    threshold, references, unknowns = report["threshold"], report["references"], report["unknowns"]
    lines = [f"threshold {threshold['active']:.4f} -> {threshold['new']:.4f}"]
    for name, found, words in (("references", references, ("right", "wrong", "rejected")),
                               ("unknowns", unknowns, ("labeled", "rejected"))):
        if not found["asked"]:
            lines.append(f"{name}: none to compare")
            continue
        lines.append(f"{name}: {found['asked']:,} decided by both, {found['agree']:,} alike; " + ", ".join(
            f"{word} {found['active'][word]:,} -> {found['new'][word]:,}" for word in words))
    alike = report["look_alikes"]
    lines.append(f"pairs of types that look alike: {len(alike['active'])} -> {len(alike['new'])}")
    return lines + [f"warning: {warning}" for warning in report["warnings"]]
