"""Networks: recognition backbones and the quality head."""
