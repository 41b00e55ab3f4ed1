"""Ray: where the service's actors and deployments are, and how they are called."""
