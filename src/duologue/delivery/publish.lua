-- Publishes frames that are not durable. From ARGV 5: the frames.
load_number('run')
-- Written first: if Redis refuses writes (out of memory, disk full), no number may be out that is not counted, or the
-- next publication would look like a repeat of it. Every other script writes before it publishes anyway.
redis.call('HSET', state_key, 'number', number + #ARGV - 4)
for i = 5, #ARGV do publish('o', '-', ARGV[i]) end
return 1
