# %%
#| default_exp model.decode

# %% [markdown]
# # One word after the other
#
# > Draw an answer token by token.
