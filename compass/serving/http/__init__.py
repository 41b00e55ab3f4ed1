"""The HTTP interface: routes, schemas, guards. It parses, awaits the gateway, and answers."""
