"""Who answers what: the routing table, the lease under which it is answered from, and how it changes."""
