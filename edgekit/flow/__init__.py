"""Layer 2: the stages, in the order of the flow: pipeline, build, verify, deploy, measure, store."""
