"""OpenAI's Responses API: its requests and answers in terms of ours, and the answers it keeps."""
