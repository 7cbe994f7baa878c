"""Verification: a real run of a model beside its captured graph; every difference has a reason or is unexplained."""
