"""Photos as a camera took them: what of an image is compared, as `inference/classify.py` with `find` or `corners` does."""
from typing import NamedTuple

from inference.model import Model
from inference.views import Views, find_in_references


class Input(NamedTuple):
    """Of a model, the part that preparing an image needs: a network in torch has no `Model`."""
    image_size: int
    fit: str
    prepare = Model.prepare


class Seen:
    """`seen(item)` -> the BGR images that are compared for an `Item`: its image, the document found in it, or both.

    image_size, fit: of the network; the images have that size already, so the thumbnail shows no more than the network sees.
    find, finder, corners: as for `DocClassifier`; the references are found where that does no harm ("auto"), as there.
    Raises UserError for a finder that cannot be used; a call raises ImageError.
    """

    def __init__(self, image_size: int, fit: str, find=False, finder=None, corners: dict | None = None):
        network = Input(image_size, fit)
        self.views = Views(network, find, finder, corners=corners)
        self.views_of_references = Views(network, find_in_references(find), self.views.finder, corners=corners)

    def __call__(self, item):
        views = self.views_of_references if item.is_reference else self.views
        return [image[:, :, ::-1] for image in views(str(item.path))[0]]
