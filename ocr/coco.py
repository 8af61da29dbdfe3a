"""Combine, split, select and check COCO files of text lines (https://cocodataset.org/#format-data).

    python -m ocr coco combine A.json B.json --out C.json --prefix A/ B/   # file names as seen from the folder of both
    python -m ocr coco split F.json --out DIR --parts train=.8,val=.1,test=.1 --by book
    python -m ocr coco subset F.json --count 200 --out G.json              # a part of what --count 500 selects
    python -m ocr coco validate F.json --images DIR

Images, annotations and categories get new ids, from 0 on, and categories of one name become one, with the first one's other
keys. All else of an entry stays. No file is ever overwritten, an input least of all. `split` never divides a line, nor a
group of them: --by FIELD keeps the images together that have the same value of a field, such as "book"; --stem SEPARATOR
those whose file names agree up to the last SEPARATOR, character by character: with "_", a_1_7.png goes with a_1_8.png, and
neither with 1_2.png nor with a_11_7.png. `validate` lists everything that is wrong and has exit status 1 when that is
something.
"""
import itertools
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from inference.cli import Parser
from inference.errors import UserError, first_line, printable
from inference.files import replacing
from inference.header import read_header
from inference.lines import CATEGORIES
from ocr.folder import FARTHEST, shuffled

KEYS = {"images": {"id": int, "file_name": str}, "categories": {"id": int, "name": str},
        "annotations": {"id": int, "image_id": int, "category_id": int}}
CHAR = CATEGORIES[0]["name"]
SLACK = 1.0  # pixels by which a box may lie beyond its image: tools round


# ---------------------------------------------------------------- files
def load(file) -> dict:
    """The content of a COCO file whose ids are sound. Raises UserError with the first thing that is not."""
    content = _read(file)
    for problem in _structure(content):
        raise UserError(f"{file}: {problem}; `python -m ocr coco validate` lists all that is wrong")
    return content


def write_new(path, content: dict) -> None:
    """Write a JSON file that does not exist yet. Raises UserError."""
    path = Path(path)
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: this folder cannot be made ({error.strerror}); give another one") from None
    with replacing(path) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")


def refuse_existing(*paths) -> None:
    """Raises UserError for a path at which there is something."""
    for path in paths:
        if Path(path).exists():
            raise UserError(f"{path}: exists already and is not overwritten; give another name or remove it")


def _read(file):
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or first_line(error)}); "
                        "give a COCO file") from None


# ---------------------------------------------------------------- combine, split, subset
def joined(contents: list[dict]) -> dict:
    """One content of several, as `load` gives them, with new ids; see the top of this file. What a file has beside images,
    categories and annotations stays where all files agree on it. Raises UserError for a file name that comes twice."""
    images, categories, annotations, number, names = [], [], [], {}, set()
    for content in contents:
        for entry in sorted(content["categories"], key=lambda entry: entry["id"]):
            if entry["name"] not in number:
                number[entry["name"]] = len(number)
                categories.append({**entry, "id": number[entry["name"]]})
        category = {entry["id"]: number[entry["name"]] for entry in content["categories"]}
        image = {entry["id"]: at for at, entry in enumerate(content["images"], len(images))}
        for entry in content["images"]:
            if entry["file_name"] in names:
                raise UserError(f"images: {entry['file_name']} comes twice, and a box could belong to either; rename one, "
                                "or give each file its folder by `combine --prefix`")
            names.add(entry["file_name"])
            images.append({**entry, "id": image[entry["id"]]})
        annotations += [{**entry, "id": at, "image_id": image[entry["image_id"]],
                         "category_id": category[entry["category_id"]]}
                        for at, entry in enumerate(content["annotations"], len(annotations))]
    rest = {key: value for key, value in contents[0].items()
            if key not in KEYS and all(key in other and other[key] == value for other in contents)}
    return {**rest, "images": images, "categories": categories, "annotations": annotations}


def selected(content: dict, places) -> dict:
    """The images at these places of the list, with their annotations, all categories, and new ids."""
    images = [content["images"][place] for place in places]
    kept = {entry["id"] for entry in images}
    annotations = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    return joined([{**content, "images": images, "annotations": annotations}])


def subset(content: dict, count: int, seed: int = 0) -> dict:
    """So many images at random; a smaller count selects a part of what a larger one selects. Raises UserError."""
    images = len(content["images"])
    if not 1 <= count <= images:
        raise UserError(f"--count {count}: there are {images} images; give a number from 1 to {images}")
    return selected(content, sorted(shuffled(images, seed)[:count]))


def split(content: dict, shares: dict[str, float], by: str = "", stem: str = "", seed: int = 0) -> dict[str, dict]:
    """{part: content} with about these shares of the images, which sum up to 1. No group of images is divided: the images
    with the same value of the field `by`, those whose names agree up to the last separator `stem`, or each image alone.
    The largest groups go first, each to the part that lacks most, the last ones to parts that have none yet; the seed orders
    groups of one size. Raises UserError."""
    groups = {}
    for place, entry in enumerate(content["images"]):
        groups.setdefault(_group(entry, by, stem), []).append(place)
    if len(groups) < len(shares):
        raise UserError(f"{len(shares)} parts, and {len(content['images'])} images in {len(groups)} groups that stay "
                        "together; ask for fewer parts, or for smaller groups")
    members = list(groups.values())
    order = [members[i] for i in shuffled(len(members), seed)]
    lacks = {part: share * len(content["images"]) for part, share in shares.items()}
    places = {part: [] for part in shares}
    for left, group in zip(range(len(order), 0, -1), sorted(order, key=len, reverse=True)):
        empty = [part for part in places if not places[part]]
        part = max(empty if len(empty) == left else lacks, key=lacks.get)
        places[part] += group
        lacks[part] -= len(group)
    return {part: selected(content, sorted(places[part])) for part in shares}


def _group(image: dict, by: str, stem: str):
    if by:
        if by not in image:
            raise UserError(f"--by {by}: the image {image['file_name']} has no such field; it has {', '.join(image)}")
        return json.dumps(image[by], sort_keys=True)
    if stem:
        name = PurePosixPath(image["file_name"]).stem
        return name.rpartition(stem)[0] if stem in name else name
    return image["file_name"]


# ---------------------------------------------------------------- validate
def validate(file, images=None) -> list[str]:
    """All that is wrong in a COCO file of lines, one line each; with the folder `images`, in its images too: those that are
    missing, damaged, or of another size. Raises UserError when the file cannot be read as JSON."""
    content = _read(file)
    found = [*_structure(content), *_contents(content)]
    return found + list(_files(content, Path(images))) if images is not None else found


def is_box(bbox) -> bool:
    """Whether it is left, top, width and height in pixels, the last two above 0."""
    return (isinstance(bbox, list) and len(bbox) == 4
            and all(type(number) in (int, float) and abs(number) < FARTHEST for number in bbox) and min(bbox[2:]) > 0)


def _entries(content, kind: str) -> Iterator[tuple[int, dict]]:
    """(place, entry) of the entries that have their keys."""
    entries = content.get(kind) if isinstance(content, dict) else None
    for at, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict) and all(type(entry.get(key)) is of for key, of in KEYS[kind].items()):
            yield at, entry


def _structure(content) -> Iterator[str]:
    """What keeps the entries from being told apart and joined."""
    known = {}
    for kind, keys in KEYS.items():
        entries = content.get(kind) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            yield f"has no list {kind}"
            continue
        whole, known[kind] = dict(_entries(content, kind)), {}
        wanted = " and ".join(f"{key} ({of.__name__})" for key, of in keys.items())
        yield from (f"{kind}[{at}] has not {wanted}" for at in range(len(entries)) if at not in whole)
        for at, entry in whole.items():
            first = known[kind].setdefault(entry["id"], at)
            if first != at:
                yield f"{kind}[{at}] has the id {entry['id']} of {kind}[{first}]"
    for at, entry in _entries(content, "annotations"):
        for key, kind in (("image_id", "images"), ("category_id", "categories")):
            if kind in known and entry[key] not in known[kind]:
                yield f"annotations[{at}] has the {key} {entry[key]}, which none of the {kind} has"


def _contents(content) -> Iterator[str]:
    """What is wrong with names, sizes, boxes, and the number of boxes."""
    for kind, key in (("images", "file_name"), ("categories", "name")):
        first = {}
        for at, entry in _entries(content, kind):
            if first.setdefault(entry[key], at) != at:
                yield f"{kind}[{at}] has the {key} {entry[key]!r} of {kind}[{first[entry[key]]}]"
    for at, entry in _entries(content, "images"):
        if not _sized(entry):
            yield f"images[{at}] {entry['file_name']}: width and height are not whole numbers above 0"
        if not isinstance(entry.get("text", ""), str):
            yield f"images[{at}] {entry['file_name']}: text is not a string"
    images = {entry["id"]: entry for _, entry in _entries(content, "images")}
    for at, entry in _entries(content, "annotations"):
        bbox, image = entry.get("bbox"), images.get(entry["image_id"])
        if not is_box(bbox):
            yield f"annotations[{at}]: bbox {bbox} is not four numbers: left, top, and a width and height above 0"
        elif image and _sized(image) and not (bbox[0] >= -SLACK and bbox[1] >= -SLACK
                                              and bbox[0] + bbox[2] <= image["width"] + SLACK
                                              and bbox[1] + bbox[3] <= image["height"] + SLACK):
            yield (f"annotations[{at}]: bbox {bbox} lies outside of its image {image['file_name']} of {image['width']} x "
                   f"{image['height']} pixels")
    chars = {entry["id"] for _, entry in _entries(content, "categories") if entry["name"] == CHAR}
    boxes = dict.fromkeys(images, 0)
    for _, entry in _entries(content, "annotations"):
        if entry["category_id"] in chars and entry["image_id"] in boxes:
            boxes[entry["image_id"]] += 1
    for number, entry in images.items():
        if chars and isinstance(entry.get("text"), str):
            characters = len("".join(entry["text"].split()))
            if boxes[number] != characters:
                yield f"{entry['file_name']}: {boxes[number]} boxes and {characters} characters"


def _sized(image) -> bool:
    return all(type(image.get(key)) is int and image[key] > 0 for key in ("width", "height"))


def _files(content, folder: Path) -> Iterator[str]:
    """What is wrong with the image files, as far as their headers say."""
    for _, entry in _entries(content, "images"):
        try:
            header = read_header((folder / entry["file_name"]).read_bytes())
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            yield f"{folder / entry['file_name']}: cannot be read ({getattr(error, 'strerror', None) or error})"
            continue
        if header is None or header.problem:
            yield f"{folder / entry['file_name']}: " + (f"a {header.problem} {header.format}" if header else "not an image")
        elif _sized(entry):
            size = (header.width, header.height)[::1 if header.orientation < 5 else -1]
            if size != (entry["width"], entry["height"]):
                yield (f"{folder / entry['file_name']}: has {size[0]} x {size[1]} pixels, and not {entry['width']} x "
                       f"{entry['height']}")


# ---------------------------------------------------------------- lines that cannot be used
class Skipped(dict):
    """{reason: what it holds for}: reported, and never fatal."""
    EXAMPLES = 3

    def add(self, reason: str, example: str) -> None:
        self.setdefault(reason, []).append(example)

    def __str__(self):
        """A line for each reason: how many there are, and the first ones."""
        return "\n".join(f"skipped {len(found):,}: {reason} ({', '.join(map(printable, found[:self.EXAMPLES]))}"
                         f"{', ...' if len(found) > self.EXAMPLES else ''})" for reason, found in self.items())


# ---------------------------------------------------------------- command line
def _shares(text: str) -> dict[str, float]:
    """train=.8,test=.2 -> {part: share}."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        shares = {name.strip(): float(share) for name, _, share in parts}
    except ValueError:
        shares = {}
    if (len(shares) < len(parts) or any(not name or Path(name).name != name or name.startswith(".") for name in shares)
            or not all(share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6):
        raise UserError(f"--parts {text}: give each part a name and a share; the shares sum up to 1, as in "
                        "train=.8,val=.1,test=.1")
    return shares


def _arguments(arguments):
    parser = Parser(prog="python -m ocr coco", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="combine | split | subset | validate")
    combine = commands.add_parser("combine", help="several files as one")
    combine.add_argument("files", nargs="+", metavar="FILE")
    combine.add_argument("--prefix", nargs="+", default=[], metavar="P",
                         help="for each file, what to put before its file names")
    divide = commands.add_parser("split", help="one file as several, which have no line in common")
    divide.add_argument("--parts", required=True, metavar="NAME=SHARE,...", help="what to write, as train=.8,val=.1,test=.1")
    how = divide.add_mutually_exclusive_group()
    how.add_argument("--by", default="", metavar="FIELD", help="keep together the images with one value of this field")
    how.add_argument("--stem", default="", metavar="SEPARATOR",
                     help="keep together the images whose names agree up to the last SEPARATOR")
    select = commands.add_parser("subset", help="some images of a file, at random")
    select.add_argument("--count", type=int, required=True, metavar="N", help="number of images")
    check = commands.add_parser("validate", help="list what is wrong in a file")
    check.add_argument("--images", metavar="DIR", help="folder of the images, to check them too")
    for command in (divide, select, check):
        command.add_argument("file", metavar="FILE")
    for command in (divide, select):
        command.add_argument("--seed", type=int, default=0, help="seed of the random order")
    for command, metavar in ((combine, "FILE"), (divide, "DIR"), (select, "FILE")):
        command.add_argument("--out", required=True, metavar=metavar, help="what to write; it must not exist"
                             if command is not divide else "folder for the parts, NAME.json each; none may exist")
    args = parser.parse_args(arguments)
    if args.command == "combine" and args.prefix and len(args.prefix) != len(args.files):
        parser.error(f"--prefix: {len(args.prefix)} for {len(args.files)} files; give one for each, '' where there is none")
    return args


def main(arguments=None):
    args = _arguments(arguments)
    if args.command == "validate":
        found = validate(args.file, args.images)
        for problem in found:
            print(printable(f"{args.file}: {problem}"))
        print(f"{printable(args.file)}: " + (f"{len(found):,} problems" if found else "nothing is wrong"))
        return 1 if found else 0
    if args.command == "combine":
        contents = [load(file) for file in args.files]
        for content, prefix in itertools.zip_longest(contents, args.prefix, fillvalue=""):
            for entry in content["images"]:
                entry["file_name"] = prefix + entry["file_name"]
        written = {Path(args.out): joined(contents)}
    elif args.command == "subset":
        written = {Path(args.out): subset(load(args.file), args.count, args.seed)}
    else:
        parts = split(load(args.file), _shares(args.parts), args.by, args.stem, args.seed)
        written = {Path(args.out, f"{part}.json"): content for part, content in parts.items()}
    refuse_existing(*written)  # before any is written
    for path, content in written.items():
        write_new(path, content)
        print(printable(f"{path}: {len(content['images']):,} images, {len(content['annotations']):,} annotations"))
    return 0
