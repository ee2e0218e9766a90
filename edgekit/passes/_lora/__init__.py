"""What the pass lora is made of: which layers can be adapted, adapters on disk, and training with adapters."""
