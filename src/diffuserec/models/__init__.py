"""Building blocks of methods: contracts, the item table, encoders, losses, views, retrieval."""
