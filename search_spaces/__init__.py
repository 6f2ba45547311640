"""What may vary: dotted config paths and their domains.  Knows no search library, and no study."""
