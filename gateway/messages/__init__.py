"""Anthropic's Messages API: its requests and answers in terms of ours."""
