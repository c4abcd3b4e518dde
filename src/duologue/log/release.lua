-- Gives a lock up.  KEYS: the lock.  ARGV: its token.  Returns 1, or 0 if it is another's (or nobody's).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
