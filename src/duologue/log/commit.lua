#!lua flags=allow-oom
-- Moves a group's cursor, never back, and trims what every group has done.
-- KEYS: the stream, its groups' cursors (a hash), the group's lock.  ARGV: lock token, group, offset of the next record.
-- It runs when memory has run out, too: trimming is what gives some back.
-- Returns 1, or 0 if the lock is another's (or nobody's): then nothing was changed.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return 0
end
local offset = tonumber(ARGV[3])
if offset > tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '0') then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
  local lowest = offset
  for _, cursor in ipairs(redis.call('HVALS', KEYS[2])) do
    lowest = math.min(lowest, tonumber(cursor))
  end
  -- `~`: whole nodes of the stream only, which costs nothing; up to one node of done records stays.
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('0-%d', lowest))
end
return 1
