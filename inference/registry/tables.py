"""What `python -m eval --calibrate` has measured of a model: the tables of thresholds, and the runner-up gap.

They are a collection's, in its row of `model`. The file in the store is of use to all collections that have its network, and
its network alone counts: else the documents of one collection would decide the thresholds of all.
"""
import json

from ..errors import UserError
from ..model import TABLES, Model, are_thresholds
from .errors import Damaged

NO_TABLES = "{}"  # the tables of a model that was never calibrated
MARGIN = "margin"
MOST = 64 << 10  # characters; those of a dozen rates are some 700


def tables_of(model: Model) -> str:
    """The tables in a model's file, as they lie in the database: JSON {name of the table: {rate: threshold}, "margin": gap}.
    Raises UserError where they are too large."""
    found = {name: {rate: entry["threshold"] for rate, entry in model.metadata[name].items()}
             for name in TABLES.values() if model.metadata.get(name)}
    text = json.dumps(found | ({MARGIN: model.margin} if model.margin else {}), sort_keys=True)
    if len(text) > MOST:
        raise UserError(f"{model.path}: its tables of thresholds have {len(text):,} characters, more than the limit of "
                        f"{MOST:,}; calibrate it again: python -m eval --calibrate")
    return text


def with_tables(model: Model, tables: str) -> Model:
    """The same network with these tables (JSON of `tables_of`), whatever is in its file. Raises Damaged."""
    metadata = {key: value for key, value in model.metadata.items() if key not in (*TABLES.values(), MARGIN)}
    try:
        found = json.loads(tables)
        margin = found.pop(MARGIN, 0.0)
        entries = {name: {rate: {"threshold": value} for rate, value in table.items()} for name, table in found.items()}
        if all(map(are_thresholds, entries.values())) and 0 <= margin <= 1:
            return Model(model.path, model.session, metadata | entries | {MARGIN: margin}, model.device, model.threads)
    except (ValueError, TypeError, AttributeError):  # of JSON of any other form
        pass
    raise Damaged(f"{model.path}: the thresholds that a collection has for it are damaged; give the file that it came "
                  "from to docmetric model add")
