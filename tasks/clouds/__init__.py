"""One module per vendor behind the small protocol of `base.py`."""
