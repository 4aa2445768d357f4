"""fastnode under the names of other libraries."""
