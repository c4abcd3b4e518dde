-- Prolongs a lock.  KEYS: the lock.  ARGV: its token, milliseconds.  Returns 1, or 0 if it is another's (or nobody's).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
