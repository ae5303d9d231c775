"""Model servers: one module per wire format or engine."""
