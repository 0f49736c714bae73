"""How rows are scored: what arrives, with which model, once each; judged, recorded, written out."""
