"""Any model of sentence-transformers, served by the contract of text-embeddings-inference (TEI).

`compass.embedder.app:build` is a Serve application: replicas on GPUs or CPUs of a cluster, which Compass asks by
`serve://<application>` and everybody else by HTTP. `compass embedder` serves the same on one machine without Ray.

An optional extra: `pip install 'compass-search[embedder]'` brings what it needs, and nothing else of Compass
needs it.
"""
