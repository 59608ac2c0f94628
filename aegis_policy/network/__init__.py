"""The two networks and the flow between them: VLM backbone, action expert, flow matching."""
