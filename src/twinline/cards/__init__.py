"""Which cards this node has, and how they are: what the makers' tools print, as typed cards. Imports facts alone."""
