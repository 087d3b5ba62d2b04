"""The data doctor: examines data sets before a GPU-hour is spent on them."""
