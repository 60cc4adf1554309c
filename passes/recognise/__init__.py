"""Recognition: many spellings of norms, rotary embedding and attention become one operation each."""
