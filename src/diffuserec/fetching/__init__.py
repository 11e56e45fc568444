"""Public data sets: what there is, whose it is, and how it comes onto this machine.

:func:`data_sets` lists what is known; :func:`fetch` brings one from its owner's address, once, and
says how it is prepared; :func:`write_shop` makes up a small shop.
"""

from diffuserec.fetching.entries import DataSet, data_set, data_sets
from diffuserec.fetching.fetch import Fetched, fetch
from diffuserec.fetching.shop import write_shop

__all__ = ["DataSet", "Fetched", "data_set", "data_sets", "fetch", "write_shop"]
