"""A LiveKit Agents worker that gives children's voice devices their voice."""
