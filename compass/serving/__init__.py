"""What answers requests: gateway, router, collection, space index. Plain classes; `app` makes actors of them."""
