"""What a run saves, what a model directory holds, and the description that both share."""
