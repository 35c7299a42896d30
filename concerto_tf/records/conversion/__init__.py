"""Inputs to shards of records: joined, spooled, shuffled, written; resumable."""
