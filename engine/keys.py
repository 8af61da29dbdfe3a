"""What a key of a config may hold: its default, its limits and a line of help, stated together where the key is declared."""
import difflib
import json
import math
from dataclasses import dataclass

from inference.errors import UserError


@dataclass(frozen=True)
class Key:
    """One key. The type of `default` is its type; `also` names further ones; `items` says what a list holds,
    texts unless they are "numbers".

    choices: all values that are allowed. least, most: limits that are allowed; above, below: limits that are not.
    """
    default: object
    help: str
    choices: tuple = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    also: tuple[type, ...] = ()
    items: str = "numbers"

    def parse(self, name: str, text: str):
        """The value of `name=text` on a command line. Raises UserError for a text of the wrong type."""
        if isinstance(self.default, bool) and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if isinstance(self.default, str) or str in self.also:
            return text
        try:
            return json.loads(text) if type(self.default) is not float or text.startswith("[") else float(text)
        except ValueError:
            raise UserError(self._wrong_type(name, text)) from None

    def checked(self, name: str, value):
        """`value`, as a float where the key is one. Raises UserError that names the key and what it may hold."""
        if type(self.default) is float and type(value) is int:
            value = float(value)
        if type(value) not in (type(self.default), *self.also) or type(value) is float and not math.isfinite(value):
            raise UserError(self._wrong_type(name, value))
        kinds = (int, float) if self.items == "numbers" else str
        if type(value) is list and not all(isinstance(item, kinds) for item in value):
            raise UserError(f"{name}={value}: must be a list of {self.items}")
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(str(value), [str(choice) for choice in self.choices], 1)
            raise UserError(f"{name}={value}: not known; " + (f"did you mean {near[0]}? " if near else "")
                            + "choose from " + ", ".join(str(choice) for choice in self.choices))
        if isinstance(value, (int, float)) and not self._within(value):
            raise UserError(f"{name}={value}: must be {self.limits}")
        return value

    @property
    def limits(self) -> str:
        """The limits in words, "" without any."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        words = {"least": "0 or more" if self.least == 0 else f"at least {self.least}", "above": f"above {self.above}",
                 "most": f"at most {self.most}", "below": f"below {self.below}"}
        return " and ".join(word for name, word in words.items() if getattr(self, name) is not None)

    def _within(self, value: float) -> bool:
        return ((self.least is None or value >= self.least) and (self.above is None or value > self.above)
                and (self.most is None or value <= self.most) and (self.below is None or value < self.below))

    def _wrong_type(self, name: str, value) -> str:
        return f"{name}={value}: must be {type(self.default).__name__}, such as {self.default!r}"
