"""The routes of the HTTP API, by what they are about."""
from . import classify, collections, events, keys, models, references, thresholds, transfer, types, unknowns

# In this order they are tried: what is asked most stands first.
ROUTES = (classify, collections, references, types, unknowns, thresholds, events, models, transfer, keys)
