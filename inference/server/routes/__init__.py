"""The routes of the HTTP API, by what they are about."""
from . import classify, collections, events, keys, models, references, thresholds, transfer, types, unknowns

ROUTES = (collections, references, types, classify, unknowns, thresholds, events, models, transfer, keys)
