"""Commands on requests and tokens of keys and tenants, and limits on them."""
