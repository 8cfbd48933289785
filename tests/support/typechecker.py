"""The checker of types that the tests put behind every function of tcar."""

from beartype import BeartypeConf, beartype

# A whole number is a float too, as PEP 484 has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
