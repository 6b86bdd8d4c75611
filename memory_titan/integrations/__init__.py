"""The store behind other libraries' interfaces: LangChain's vector store, LangGraph's store."""
