"""The plan card: what a hub shows of a plan that is uploaded, with its front matter."""
