"""Is there a way to the provider?"""
