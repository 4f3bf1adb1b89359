"""Records of attacks and the metrics computed from them."""
