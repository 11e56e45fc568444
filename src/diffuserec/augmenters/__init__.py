"""Dataset in, longer dataset out: one file a method, and the folder is the list of them."""
